"""What is asked: suite files, the samples they plan, and the generators that write them.

Start at `suite.parse_suite`; `plan.PlannedSample.build` makes a sample; `generators` holds one file
per kind of context. Nothing here imports dspy.
"""
