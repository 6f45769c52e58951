"""The two tasks of joint training (V2 paper, sec 4.2): captions of images, and language-only instructions."""

TASKS = ("caption", "instruction")
