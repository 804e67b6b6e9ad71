"""What a run goes on from: whole or not there, here and in any store."""
