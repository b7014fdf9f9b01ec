"""The attention explorer."""


def __getattr__(name: str):
    """Import the widget when it is first used: anywidget is an extra (`explore`) that the rest does without."""
    if name == "AttentionExplorer":
        from saol_lib.explorer.widget import AttentionExplorer

        return AttentionExplorer
    raise AttributeError(f"saol_lib.explorer has no {name!r}; it has AttentionExplorer")


__all__ = ["AttentionExplorer"]
