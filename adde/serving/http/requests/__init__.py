"""What a request passes before its route: connection, host, key, admission, body, pictures."""
