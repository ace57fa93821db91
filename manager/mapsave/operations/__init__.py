"""The operations: save, restore, check, verify, recover. Each file is the story of one."""
