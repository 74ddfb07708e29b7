"""What a chapter calls: answers are run, compared and spoken of; predictions are kept and confronted with results."""
