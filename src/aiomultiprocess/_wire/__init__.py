"""What travels: frames, the journal, exceptions. Parent and worker share it."""
