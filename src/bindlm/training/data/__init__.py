"""What a model is trained on: published data sets of many layouts, read into one kind of sample."""
