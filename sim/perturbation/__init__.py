"""How far a policy carries: worlds disturbed along seven axes, and swaps that show what it learned by heart."""
