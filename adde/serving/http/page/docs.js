// validatorUrl: nothing is sent to Swagger's own validator.
SwaggerUIBundle({ url: new URL("openapi.json", location).href, dom_id: "#swagger", validatorUrl: null });
