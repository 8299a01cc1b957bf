"""What the encoder's element-wise work and attention are made of."""
