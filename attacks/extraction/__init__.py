"""Can the system be copied by asking it?"""
