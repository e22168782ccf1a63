"""The student: its configuration, network and image processor, and how weights come in and go out."""
