"""Commands are typed in this process, under capture of what they print."""

# Prefect's log handlers keep the standard error of the moment in which Prefect is imported. Imported first by a test that
# captures, it would write to that test's, which is closed, and complain about it in what other tests capture.
import prefect.main  # noqa: F401
