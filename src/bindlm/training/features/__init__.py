"""Joint embeddings of a data set's media, made once by the frozen encoder and read by every epoch."""
