"""From a resolved checkpoint to the model: prove, map, bind."""
