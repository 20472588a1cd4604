"""The resampler that pools a view to a given grid."""
