"""From runs to verdicts, tables and figures."""
