"""Checks of an installation or a site folder: each gives status, finding and fix, and all of them run.

A check is a function from what it looks at to its findings, and a line in a table of checks
(:data:`modaltune.doctor.installation.CHECKS`, :data:`modaltune.doctor.site.CHECKS`). Findings follow the rule of
:mod:`modaltune.errors`: row numbers stand for patients, and no identifier or measured value is shown.
"""
