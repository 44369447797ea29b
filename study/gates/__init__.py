"""The gates: each a pure function to one `Judgement`. `study.validity` has the list of them."""
