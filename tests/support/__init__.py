"""What tests share: servers, fleets, clips, stand-ins."""
