"""Pure: values and the files it is handed in, values and files out. No socket, clock, dice, database or log."""
