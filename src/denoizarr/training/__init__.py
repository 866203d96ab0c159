"""From patches to a trained model: the stream, the noise kernel, the loop, the model file."""
