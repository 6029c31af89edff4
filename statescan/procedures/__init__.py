"""(model, data) to a model: train and its kin; and how to run one: generate."""
