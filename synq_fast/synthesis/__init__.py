"""Images from the teacher alone: pixel optimization, calibration centres, the image bank."""
