"""A text that a model of any size scores."""

TEXT = {
    "text": (
        "The with statement is used to wrap the execution of a block with methods defined by a"
        " context manager. " * 6
    )
}
