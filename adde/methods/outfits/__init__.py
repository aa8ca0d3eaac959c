"""A head on a trained ADDE that completes outfits."""
