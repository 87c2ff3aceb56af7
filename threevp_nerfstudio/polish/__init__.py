"""The last stage of `threevp track`: poses are corrected by what an avatar, trained on them, says of each picture."""
