"""From a trained model to a bundle that serves without torch, and proof that it answers alike."""
