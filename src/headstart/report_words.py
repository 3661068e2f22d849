"""What a report says beside its numbers: captions, and what the words mean."""

CAPTIONS = {
    "rounds": (
        "Validation clients during training, none of which trains. The personalized curve is at the length of"
        " personalization that was chosen at the end of each stage. With several seeds: the mean of those that have come"
        " furthest, and a band from the lowest to the highest. An arrow marks where a stage begins."
    ),
    "personalization": (
        "Uniform mean over test clients at every length of personalization; bands are 95 % intervals over clients. A dot"
        " marks the length that was chosen, on validation clients: a better one in this figure was not known when choosing."
    ),
    "clients": (
        "Initial against personalized, in each client's own test examples. In the shaded half personalization made a client"
        " worse, if only by chance: many clients have few test examples. Grey histograms show how clients spread before"
        " (above) and after (at the right). With several seeds a client's values are means over them."
    ),
    "gains": (
        "How many test clients gain how much. The first bar right of zero holds the clients that did not change. With"
        " several seeds a client's gain is the mean over them."
    ),
    "samples": "A few examples of a few test clients, each with its label: clients differ, and a model can be made their own.",
}

MEANINGS = (
    (
        "Initial and personalized",
        "The initial model is the one that federated training ends with, the same for every client. The personalized model is"
        " what it becomes after local training on a client's own adaptation examples. Both are measured on that client's own"
        " test examples, which neither training has seen.",
    ),
    (
        "Training, validation and test clients",
        "Three groups with no client in common. Training clients train the initial model. Validation clients give the curves"
        " during training and choose the length of personalization. Test clients are measured once, at the end of each stage;"
        " nothing is chosen on them.",
    ),
    (
        "Mean",
        "Uniform over clients: a client with 3 test examples counts as much as one with 300.",
    ),
    (
        "Interval",
        "95 % percentile bootstrap over test clients: how far the mean would move with other clients of the same kind. It says"
        " nothing of another training run; the spread over seeds does, where there are several seeds.",
    ),
    (
        "Difference",
        "Personalized minus initial, client by client, so that its interval is narrower than the two beside it suggest. Where"
        " lower is better, a gain is a negative difference.",
    ),
    (
        "Spread and worst decile",
        "The spread is the standard deviation of the clients' own values. A tenth of the clients does worse than the worst"
        " decile. Both contain the noise of few test examples.",
    ),
    (
        "Clients hurt, and by chance",
        "The share of test clients that did worse after personalization on their few test examples. By chance is the share"
        " that would look hurt if personalization truly helped everybody alike; only what lies well above it, marked as"
        " beyond chance, is evidence of harm.",
    ),
    (
        "Length",
        "How many local epochs (or steps) of personalization; chosen among all lengths up to the largest tried, by the best"
        " mean of the validation clients. 0 means that personalization did not help them.",
    ),
    (
        "Rounds to target",
        "The first evaluated round at which the mean over the watched validation clients reaches the target; > 100 means not"
        " within 100 rounds. With several seeds the mean of those that reach it, and how many do.",
    ),
)
