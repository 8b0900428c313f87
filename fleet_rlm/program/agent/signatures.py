"""Ready-made signatures for long texts: what to get out of documentation, documents and logs."""

from __future__ import annotations

import dspy


class ExtractArchitecture(dspy.Signature):
    """Describe the architecture that the documentation tells of."""

    docs: str = dspy.InputField(desc="the documentation")
    query: str = dspy.InputField(desc="what to look at")
    modules: list[str] = dspy.OutputField(desc="names of its modules")
    optimizers: list[str] = dspy.OutputField(desc="names of its optimizers")
    design_principles: str = dspy.OutputField(desc="the principles it follows")


class ExtractAPIEndpoints(dspy.Signature):
    """List every API endpoint that the documentation names."""

    docs: str = dspy.InputField(desc="the documentation")
    api_endpoints: list[str] = dspy.OutputField(desc="method and path of each, as written")


class FindErrorPatterns(dspy.Signature):
    """Find the kinds of errors that the documentation tells of, and how they are solved."""

    docs: str = dspy.InputField(desc="the documentation")
    error_categories: dict[str, str] = dspy.OutputField(desc="kind of error -> its solution")
    total_errors_found: int = dspy.OutputField(desc="number of errors, all kinds together")


class ExtractWithCustomTool(dspy.Signature):
    """Describe the structure of the documentation, with the tools where they help."""

    docs: str = dspy.InputField(desc="the documentation")
    headers: list[str] = dspy.OutputField(desc="its headers, in order")
    code_blocks: list[str] = dspy.OutputField(desc="its code blocks, in order")
    structure_summary: str = dspy.OutputField(desc="how it is built")


class AnalyzeLongDocument(dspy.Signature):
    """Answer the query from all of the document, with the findings that support the answer."""

    document: str = dspy.InputField(desc="the document")
    query: str = dspy.InputField(desc="the question")
    findings: list[str] = dspy.OutputField(desc="what in the document supports the answer")
    answer: str = dspy.OutputField(desc="the answer, in the form that the query asks for")
    sections_examined: int = dspy.OutputField(desc="number of sections that were looked at")


class SummarizeLongDocument(dspy.Signature):
    """Summarise the document with the focus in mind, from all of it."""

    document: str = dspy.InputField(desc="the document")
    focus: str = dspy.InputField(desc="what matters to the reader")
    summary: str = dspy.OutputField(desc="the summary")
    key_points: list[str] = dspy.OutputField(desc="the most important points")
    coverage_pct: int = dspy.OutputField(
        desc="share of the document that went into the summary, 0 to 100"
    )


class ExtractFromLogs(dspy.Signature):
    """Find what the query asks for in the logs, and the patterns behind it."""

    logs: str = dspy.InputField(desc="the log entries")
    query: str = dspy.InputField(desc="what to look for")
    matches: list[str] = dspy.OutputField(desc="matching log entries, as written")
    patterns: dict[str, str] = dspy.OutputField(desc="name of a pattern -> what it looks like")
    time_range: str = dspy.OutputField(desc="first and last time stamp of the matches")
