"""The reference trainer: translation and captioning with every loss of the paper. Needs the extra ``[train]``."""
