"""What a learner has: copies of the chapters in my/, and answers that are found, checked and carried over."""
