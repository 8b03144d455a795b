"""Was this example in the training set?"""
