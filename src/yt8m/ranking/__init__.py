"""From the probabilities of all segments to a submission: merged over models, ranked per class, written."""
