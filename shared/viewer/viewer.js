// Shows this server's own description. No validator: it would send the description's address to another site.
"use strict";

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#viewer",
  deepLinking: true,
  validatorUrl: null,
});
