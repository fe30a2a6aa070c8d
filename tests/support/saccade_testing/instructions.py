"""Instructions of skills that tests merge, one each."""

INSTRUCTIONS = ("open the drawer", "pick the cube", "pour the ball", "press the button")
