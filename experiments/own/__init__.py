"""One's own clips from folder to film, every step an ordinary command; `lumos own`."""
