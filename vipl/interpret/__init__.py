"""One loop over the equations of a program, with a function that says what to do at a site."""
