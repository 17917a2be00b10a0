"""Commands of earlier versions: each says what has come in its place."""
