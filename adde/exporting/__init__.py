"""From a trained model to a bundle that serves without torch, and the proof that it answers alike."""
