"""Commands that a base install brings along: adde-server, adde-query and adde-gallery."""
