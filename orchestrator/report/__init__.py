"""What a person looks at afterwards: run directories as one file of pictures and words, which opens anywhere."""
