"""What did the training data look like?"""
