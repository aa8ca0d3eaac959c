// validatorUrl: nothing is sent to Swagger's own validator.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger", validatorUrl: null });
