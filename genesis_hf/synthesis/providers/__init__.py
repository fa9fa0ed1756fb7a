"""Who answers: one small interface (`base`), and those behind it."""
