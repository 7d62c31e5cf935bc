"""slimcodec inside other libraries: import the module of the one that you use."""
