"""One module for each subcommand of `vitcx`, imported only when it is called."""
