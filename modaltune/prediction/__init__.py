"""What a released model says about the cases of one site; everything stays in the site's folder."""
