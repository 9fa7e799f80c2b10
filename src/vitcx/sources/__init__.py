"""Where pictures come from: files, folders, patterns, lists and archives, for every command."""
