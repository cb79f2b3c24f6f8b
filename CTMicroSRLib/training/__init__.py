"""Training of the methods: pairs, trainer, export to a model folder."""
