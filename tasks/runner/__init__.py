"""What a step is, and how one is run: declaration, child process, program, runtime."""
