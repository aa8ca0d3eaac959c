"""Console commands of the base install: adde-server, adde-query and adde-gallery."""
