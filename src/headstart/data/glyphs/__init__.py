"""`glyphs`: a federation of drawn characters that needs no download."""
